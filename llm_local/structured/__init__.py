"""What an answer may be: JSON schemas, regular expressions, choices and grammars, enforced while it is made."""
