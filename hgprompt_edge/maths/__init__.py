"""What server and device compute alike: mixing, intervals, statistics of features."""
