"""How good a model version is: metrics by slice with confidence intervals, against baselines and the champion."""
