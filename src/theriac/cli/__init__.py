"""The command line. Importing it must not import torch: commands import what they need when they run."""
