"""The backbone and the source bank that come with the package."""
