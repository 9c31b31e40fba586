"""What the steps share, on three floors: run, training, analysis; files lie under all of them."""
