"""How fast is the workbook, against doing the same the plain way on the same machine at the same time?"""
