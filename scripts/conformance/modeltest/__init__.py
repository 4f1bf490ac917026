"""Random operations on two directories side by side: same results, same errno, same trees."""
