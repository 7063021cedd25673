"""The version of Theriac."""

VERSION = "0.1.0"
