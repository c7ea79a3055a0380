"""What is done to a Trinity YAML that is there already: read with its lines, judged, rewritten, summed up."""
