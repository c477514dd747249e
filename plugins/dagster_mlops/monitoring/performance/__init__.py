"""Performance: predictions against labels, and an estimate of it until labels are there."""
