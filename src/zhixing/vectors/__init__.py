"""Words to vectors: trained from plain text, looked up, compared and drawn."""
