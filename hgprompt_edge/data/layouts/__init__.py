"""Layouts of data sets: folders, zip files, lists, parquet, archives of torchvision, the hub."""
