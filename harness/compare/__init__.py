"""Compares experiments: trains them in turn and judges what each costs against what it learns."""
