from trinity_rec.cli import main

main()
