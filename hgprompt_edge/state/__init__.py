"""What a device has learned: its history, the file that it sends home, and merging."""
