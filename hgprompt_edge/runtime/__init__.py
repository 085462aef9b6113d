"""Run exported models: predictor, watching a folder, benchmarks, checks. Needs no PyTorch."""
