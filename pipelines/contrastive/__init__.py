"""Contrastive training as plain torch: views, loss, step, quality; shared by `train` and `tune`, runs without Ray."""
