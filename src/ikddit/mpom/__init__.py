"""Raw world to canonical records: readers, raster, schema, ingest, quality rules."""
