"""Weight files: checkpoints, pretrained backbones, transfer, and the import of reference weights."""
