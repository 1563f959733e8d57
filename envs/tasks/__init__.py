"""The environments that ship with the library, one file each."""
