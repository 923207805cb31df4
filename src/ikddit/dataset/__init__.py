"""From validated records to what training reads: splits, normaliser, vocabularies, memory-mapped Arrow."""
