"""What Trinity loads: the only part of the package that imports Trinity's algorithm interfaces."""
