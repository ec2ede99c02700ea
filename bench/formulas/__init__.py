"""Losses in plain torch, as others write them: a file a family of peers, probes and oracles."""
