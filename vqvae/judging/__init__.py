"""How images look to a pretrained network: features of sets of images, and the figures that compare such sets."""
