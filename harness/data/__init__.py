"""The data: data sets, augmentation, each rank's part, batches on their device."""
