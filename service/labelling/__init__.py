"""The labelling tool: a folder of images, its labels, and a detector that suggests labels."""
