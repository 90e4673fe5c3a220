"""Pretrained, frozen networks whose features say how alike two images look."""
