"""What every training needs, of a VQ model or of a prior: device, learning rate, log, and a state to go on from."""
