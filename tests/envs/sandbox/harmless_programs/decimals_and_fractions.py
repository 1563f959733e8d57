from decimal import Decimal, getcontext
from fractions import Fraction

getcontext().prec = 20
print(Decimal(1) / 7, Fraction(1, 3) + Fraction(1, 6))

# > 0.14285714285714285714 1/2
