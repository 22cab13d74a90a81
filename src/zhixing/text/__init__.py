"""Files and named data sets to documents: plain strings, cleaned and split."""
