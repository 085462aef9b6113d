"""Files that leave the process: bundle, device bank, model metadata, signatures."""
