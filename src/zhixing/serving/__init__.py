"""Serving: trained runs behind HTTP, for any OpenAI client and for batches."""
