"""What it learns from: data sets, augmentation, each rank's share, batches on their device."""
