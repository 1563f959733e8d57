s = "naïve 漢字 🎉"
print(s, len(s), s.encode()[:6], s[::-1])

# > naïve 漢字 🎉 10 b'na\xc3\xafve' 🎉 字漢 evïan
