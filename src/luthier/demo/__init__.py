"""The demo's own data and recipe: a luthier of Cremona, written for this project."""
