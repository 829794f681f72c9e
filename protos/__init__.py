"""What peers say to each other: messages and services of `dist_train.v1`, and the code generated from them."""
