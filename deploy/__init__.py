"""How Weighbridge is put to work; the product itself never imports from here."""
