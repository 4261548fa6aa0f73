"""RAM as files: the image and its layout, digests, the dirty bitmap, the dirty trackers."""
