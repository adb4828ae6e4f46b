"""Speed, measured: variants alternate in one run; medians and ratios are what to quote."""
