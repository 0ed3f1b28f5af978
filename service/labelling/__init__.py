"""The labelling tool: a folder of pictures, its labels, and a detector that suggests them."""
