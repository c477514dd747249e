"""One piece for each small idea that several tools need: keys, records, checks, processes, files, tables."""
