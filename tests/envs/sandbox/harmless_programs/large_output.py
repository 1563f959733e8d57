for number in range(600):
    print(str(number % 10) * 99)
