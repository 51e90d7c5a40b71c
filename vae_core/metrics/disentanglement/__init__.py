"""How well single codes stand for single factors of the data: the scores of the literature, from plain arrays.

`information` holds what follows from counts, `pairs` what needs rows that share a factor, `learned` what turns the
answers of fitted classifiers into scores. The classifiers themselves are fitted by the caller. All follow
google-research/disentanglement_lib, disentanglement_lib/evaluation/metrics; its figures for a model vary with the
drawn rows, so the same rows and generator are needed for the same figure.
"""
