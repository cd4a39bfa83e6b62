"""Judging tokenizers: one report for any tokenizer, and the studies behind it."""
