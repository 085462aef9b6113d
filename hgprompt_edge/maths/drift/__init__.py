"""Sequential tests of a stream of images against a shift, and against another mix of classes."""
