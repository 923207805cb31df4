"""Distances between the measured and the generated maps as distributions: FID and its kin.

`maps` holds the masked maps, `rendering` how they become images, `weights` and `inception` the Inception network,
`spaces` the feature spaces that need no Inception, `distances` what is measured in a space, `measured` the Inception
features of all measured maps (stage `fid_measured`), `reference` the measured side (stage `fid_reference`) and `score`
the generated side (stage `fid`). See docs/evaluation.md.
"""
