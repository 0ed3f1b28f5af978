"""Weight files: checkpoints, pretrained backbones, transfer, and the import of reference weights."""

NONE, IMAGENET, BUNDLED = "none", "imagenet", "bundled"  # values of --pretrained besides a file
