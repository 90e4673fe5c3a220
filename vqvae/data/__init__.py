"""Images, sounds and codes: data sets, the index sampler, loaders, the code store."""
