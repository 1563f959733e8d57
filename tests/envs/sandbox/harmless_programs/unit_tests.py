import io
import unittest


class T(unittest.TestCase):
    def test_one(self):
        self.assertEqual(1, 1)


r = unittest.TextTestRunner(stream=io.StringIO()).run(unittest.defaultTestLoader.loadTestsFromTestCase(T))
print(r.testsRun, r.wasSuccessful())

# > 1 True
