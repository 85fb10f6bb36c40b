"""How do rows reach their consumer? Host engines behind one interface; knows no clocks."""
