"""`kyon-pl import-role`: what people have (a card, a chat log, a table, a novel) becomes a role folder."""
