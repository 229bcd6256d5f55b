"""From activations and labels to matches: frequencies, calibrated F1, statistics, filters, output score."""
