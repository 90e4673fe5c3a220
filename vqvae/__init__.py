"""VQ-VAEs and priors on their codes: layers, trainer, data. See README.md for the command line.

Legend, used in every docstring and shape comment: `B` batch, `C` data channels, `*S` data dims (T), (H, W) or
(T, H, W), `*s` latent dims, `D` latent width, `d` code width, `N` = B x prod(s) vectors, `K` codebook size, `M` code maps.
"""
