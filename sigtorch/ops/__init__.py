"""Operations, one file or folder a family: function, formula, autograd Function and module."""
